"""The memory: services, versions, replicas, decisions. One contract (`base`), one set of SQL statements (`sql`)."""
