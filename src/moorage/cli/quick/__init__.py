"""The commands that people and scripts run most, without what takes long to import: click, msgspec, http.client."""
