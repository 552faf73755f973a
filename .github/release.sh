#!/bin/sh
# Everything that a release carries: release.sh v1.2.3 dist [linux/amd64 ...]
#
#   mayfly_v1.2.3_OS_ARCH            what client/action downloads
#   mayfly-issuer_v1.2.3_linux_ARCH, mayfly-sidecar_v1.2.3_linux_ARCH
#   SHA256SUMS                       of all of them, as sha256sum --check reads it
#
# The daemons take their version from the tag of the commit, so the checkout has
# to be clean; the folder is one that git ignores, or outside.
set -eu
version=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "$(git -C "$root" status --porcelain)" ] || ! git -C "$root" tag --points-at HEAD | grep -qxF "$version"; then
  echo "release.sh: the checkout has to be clean, and its commit to carry the tag $version" >&2
  exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "$(ls -A "$out")" ]; then
  echo "release.sh: $out is not empty: only what was built here is released" >&2
  exit 1
fi
"$root/client/action/release.sh" "$version" "$out" "$@"
cd "$root"
for platform; do
  os=${platform%/*} arch=${platform#*/}
  [ "$os" = linux ] || continue
  for program in issuer/cmd/mayfly-issuer engine-sidecar/cmd/mayfly-sidecar; do
    file=$out/${program##*/}_${version}_${os}_${arch}
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch GOFLAGS='' GOWORK=off GOAMD64=v1 GOARM64=v8.0 GOEXPERIMENT='' \
      go build -trimpath -buildvcs=true -tags nobadger,nomysql,nopgx,nobbolt -ldflags '-s -w -buildid=' -o "$file" "./$program"
  done
done
cd "$out"
sha256sum -- * >"${TMPDIR:-/tmp}/SHA256SUMS.$$"
mv "${TMPDIR:-/tmp}/SHA256SUMS.$$" SHA256SUMS
