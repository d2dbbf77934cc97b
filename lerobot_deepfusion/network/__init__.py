"""The two streams: a LLaVA that perceives and an expert that acts. Nothing here knows LeRobot."""
