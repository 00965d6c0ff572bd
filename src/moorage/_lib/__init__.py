"""Small tools without knowledge of containers: back-off, inboxes, time limits, worker threads."""
