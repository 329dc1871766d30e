"""A deployment: from the plan to the proof, and what to do when it went wrong."""
