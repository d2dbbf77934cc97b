"""The policy at work for a robot elsewhere: LeRobot's asynchronous inference, safe to leave running in a network."""
