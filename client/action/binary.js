// Where the mayfly program comes from: a release whose SHA-256 stands in
// checksums.json beside this file, PATH, or this action's own checkout.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const runner = require('./runner');

const RELEASES = 'https://github.com/mayfly-ca/mayfly/releases/download';
const DOWNLOAD_MS = 120_000;
const MAX_BYTES = 64 << 20;

const ARCH = { x64: 'amd64', arm64: 'arm64' };

// find returns the path of a mayfly program and says where it came from.
async function find(version, folder) {
  const pinned = JSON.parse(fs.readFileSync(path.join(__dirname, 'checksums.json'), 'utf8'));
  if (version === 'path') return fromPath() || missing('the input version is "path", and PATH has no mayfly');
  if (version === 'source') return fromSource(folder);
  if (version !== '') return fromRelease(version, pinned, folder);
  if (pinned.latest) return fromRelease(pinned.latest, pinned, folder);
  return fromPath() || fromSource(folder);
}

function missing(why) {
  throw new Error(`${why}. Install mayfly in an earlier step, or set the input version to a release or to "source"`);
}

function fromPath() {
  for (const dir of (process.env.PATH || '').split(path.delimiter)) {
    const file = path.join(dir, 'mayfly');
    try {
      fs.accessSync(file, fs.constants.X_OK);
      if (fs.statSync(file).isFile()) return { file, from: 'PATH' };
    } catch {
      // not in this folder
    }
  }
  return null;
}

function fromSource(folder) {
  const module = path.resolve(__dirname, '..', '..');
  const file = path.join(folder, 'mayfly');
  const built = spawnSync('go', ['build', '-trimpath', '-o', file, './client/cmd/mayfly'],
    { cwd: module, encoding: 'utf8', env: { ...process.env, GOWORK: 'off', GOFLAGS: '' } });
  if (built.error && built.error.code === 'ENOENT') {
    missing('no release is pinned in this version of the action, PATH has no mayfly, and there is no Go to build it with (actions/setup-go)');
  }
  if (built.status !== 0) throw new Error(`go build of the action's own checkout: ${runner.plain(built.stderr || built.error)}`);
  return { file, from: 'the action\'s own source' };
}

async function fromRelease(version, pinned, folder) {
  if (!/^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$/.test(version)) {
    throw new Error(`input version: "${version}" is no release such as v1.2.3, nor "path" nor "source"`);
  }
  const arch = ARCH[process.arch];
  const os = process.platform;
  if (!arch || !['linux', 'darwin'].includes(os)) throw new Error(`mayfly has no program for ${os}/${process.arch}`);
  const name = `mayfly_${os}_${arch}`;
  const want = (pinned.releases[version] || {})[name];
  if (!want) throw new Error(`this version of the action pins no checksum for ${name} of ${version}: use the action's matching tag`);
  const bytes = await download(`${RELEASES}/${version}/${name}`);
  const got = crypto.createHash('sha256').update(bytes).digest('hex');
  if (got !== want) throw new Error(`${name} of ${version} has SHA-256 ${got}, and ${want} is pinned: not run`);
  const file = path.join(folder, 'mayfly');
  fs.writeFileSync(file, bytes, { mode: 0o700 });
  return { file, from: `release ${version}` };
}

async function download(url) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(DOWNLOAD_MS) });
  if (!answer.ok) throw new Error(`GET ${url}: ${answer.status}`);
  const chunks = [];
  let size = 0;
  for await (const chunk of answer.body) {
    size += chunk.length;
    if (size > MAX_BYTES) throw new Error(`GET ${url}: more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

module.exports = { find };
