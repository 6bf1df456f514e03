"""Services as pods of a Kubernetes cluster."""
