"""A federation for whoever runs it: what is known of devices and runs, as a page, as JSON, as metrics, in a terminal."""
