"""What clients ask a server for and when, and the figures of their answers. Knows no HTTP; simulations use it too."""
