"""Plans of the checked model and of z-image-nano: building, errors, speed, memory."""
