"""`hilum backfill`: past studies from an archive, analysed and held against their final diagnoses."""
