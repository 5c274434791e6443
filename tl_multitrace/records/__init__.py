"""What results are made of: statistics, and how results are kept and read."""
