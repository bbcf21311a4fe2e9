"""Run folders, reports and comparisons."""
