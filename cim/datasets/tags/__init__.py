"""Tags from files: COCO jsons of any size, parsed once; csv lists."""
