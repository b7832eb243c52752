"""The promise under faults: real agents are hurt, an independent recorder looks at what is left."""
