"""Pictures of many images, moving pictures, and pictures of explanations."""
