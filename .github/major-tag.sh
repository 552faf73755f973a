#!/bin/sh
# Moves the tag of a major version to a release, so that client/action@v1 is the
# newest v1: major-tag.sh v1.2.3, in a clone that has every tag. A pre-release,
# and a release older than another of its major version, move nothing.
set -eu
version=$1
case $version in
  *-*) echo "major-tag.sh: $version is a pre-release: no tag is moved"; exit 0 ;;
esac
major=${version%%.*}
newest=$(git tag --list "$major.*" --sort=version:refname | grep -v -- - | tail -n 1)
if [ "$newest" != "$version" ]; then
  echo "major-tag.sh: $newest is newer than $version: $major stays there"
  exit 0
fi
# gh hands the job's token to git: it is in no file and no argument.
git -c credential.helper='!gh auth git-credential' push --force origin "$version^{commit}:refs/tags/$major"
