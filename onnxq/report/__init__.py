"""What a user reads: tables for the terminal, JSON, and one HTML file."""
