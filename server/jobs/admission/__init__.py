"""What is accepted, and when it will be done: limits, rates, estimates and the order of the queue."""
