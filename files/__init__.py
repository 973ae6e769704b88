"""What happens to files: thumbnails, retention. Knows no queue and no database."""
