"""Spam and phishing: a message in, a verdict with its reasons out. Nothing is fetched and nothing is stored here."""
