"""The record: tables, the only SQL of the project, and the tenant walls around it."""
