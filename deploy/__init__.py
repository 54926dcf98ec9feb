"""What a deployment on servers is made of: services to try it on, containers, dashboards."""
