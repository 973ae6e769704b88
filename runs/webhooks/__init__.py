"""Webhooks: events of a tenant, posted to addresses of its choice and signed, as Standard Webhooks (standardwebhooks.com) has it."""
