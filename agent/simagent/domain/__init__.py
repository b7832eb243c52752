"""What a task is: specs, states, the rules of change. Pure: no input or output."""
