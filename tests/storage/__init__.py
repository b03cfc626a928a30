"""What is agreed and how it is kept."""
