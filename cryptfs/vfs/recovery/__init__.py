"""Recovery after a crash: replay the journal, and give unclosed files their length."""
