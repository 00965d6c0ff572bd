"""What the page shows, one file a subject: functions from values of the API to elements."""
