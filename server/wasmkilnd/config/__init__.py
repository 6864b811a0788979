"""Settings: one schema with the only defaults; flag over environment over file over default."""
