"""Fleets of agents on servers of S3 and SQS: long cases, for `make test-fleet`."""
