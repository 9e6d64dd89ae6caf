"""Reports: tables for the terminal, JSON, and one HTML file."""
