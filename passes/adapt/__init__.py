"""What the options ask for, and what makes another model of the graph. adapting.py has the order."""
