"""What `kerasrlhf.data.audit` and `kerasrlhf.data.clean` consist of: checks, findings, reports."""
