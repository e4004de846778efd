"""What a run tells while it trains: journal, screen, dashboard, trackers, watchdog."""
