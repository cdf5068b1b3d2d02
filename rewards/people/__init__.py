"""One person: questions, answers, records, edits, calibrated intervals."""
