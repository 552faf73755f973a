#!/bin/sh
# The binaries of mayfly that a release carries and checksums.json pins, the
# same bytes from any machine: release.sh v1.2.3 dist [linux/amd64 ...]
set -eu
version=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
for platform; do
  os=${platform%/*} arch=${platform#*/}
  # Neither paths, nor the commit (which will hold their sums), nor flags from
  # outside get into the bytes; go.mod names the compiler.
  CGO_ENABLED=0 GOOS=$os GOARCH=$arch GOFLAGS='' GOWORK=off GOAMD64=v1 GOARM64=v8.0 GOEXPERIMENT='' \
    go build -trimpath -buildvcs=false \
    -ldflags "-s -w -buildid= -X github.com/mayfly-ca/mayfly/client/command.release=$version" \
    -o "$out/mayfly_${version}_${os}_${arch}" ./client/cmd/mayfly
done
