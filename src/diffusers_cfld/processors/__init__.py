"""What users have, images and poses, becomes what the models take."""
