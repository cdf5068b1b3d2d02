"""What `import rewards` offers: functions from data in memory to people's coefficients, and the records they return."""
