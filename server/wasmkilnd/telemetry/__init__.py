"""What the daemon tells about itself: metrics, logs, and the page that serves them."""
