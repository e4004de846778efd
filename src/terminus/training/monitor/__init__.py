"""A run's reports while it trains: journal, screen, dashboard, trackers, watchdog."""
