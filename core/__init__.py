"""What every room may use: settings, errors, tenancy, logging, clock, ids, hosts. A closed list, tested; not a place for the rest."""
