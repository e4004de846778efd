"""The pages: Jinja2 templates and static files that ship with the package, served from here and from nowhere else."""

from terminus.serving.pages.routes import mount as mount
