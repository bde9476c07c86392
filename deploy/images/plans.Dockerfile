# A plan directory as an image, for the component plans-image of deploy/kubernetes. The context is the plan directory:
#
#     docker build --file deploy/images/plans.Dockerfile --tag zimage-plans engines/current/
#
ARG BASE=busybox:1.37
FROM ${BASE}
COPY . /plans
USER 10001:10001
