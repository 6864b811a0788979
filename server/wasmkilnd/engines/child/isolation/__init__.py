"""What keeps a worker and its jobs from doing anything but compile, in layers."""
