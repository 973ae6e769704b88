#!/bin/sh
# A role of its own for Mailroom: the image's default user is a superuser, and superusers walk through row-level security.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$DATABASE_PASSWORD" --username postgres <<'SQL'
CREATE ROLE mailroom LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'password';
CREATE DATABASE mailroom OWNER mailroom;
SQL
