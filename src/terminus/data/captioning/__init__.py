"""New captions from vision-language models: asked, judged, kept with their origin, merged into what training reads."""
