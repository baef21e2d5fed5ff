"""Turn the images and poses that users pass in into what the models take."""
