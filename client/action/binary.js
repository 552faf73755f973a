// Finds the mayfly program: in a release whose SHA-256 is in checksums.json in this
// folder, in PATH, or in this action's own checkout.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const runner = require('./runner');
const { download, MAX_BYTES } = require('./download');

// RELEASE matches the name of a release, which is also its tag.
const RELEASE = /^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$/;

const ARCH = { x64: 'amd64', arm64: 'arm64' };
const OS = ['linux', 'darwin'];

const asset = (version, os, arch) => `mayfly_${version}_${os}_${arch}`;

// ASSETS returns the files of a release for this action: the bare programs.
const ASSETS = (version) => OS.flatMap((os) => Object.values(ARCH).map((arch) => asset(version, os, arch)));

// find returns a mayfly program: its file, its origin, and whether it is already in
// PATH. A program that is not in PATH is put into folder. An empty version tries the
// release that this action pins, then PATH, then the source. If a pinned release cannot
// be downloaded, that is an error, because the job has not chosen the program in PATH.
async function find(version, folder) {
  const pinned = JSON.parse(fs.readFileSync(path.join(__dirname, 'checksums.json'), 'utf8'));
  if (version === 'path') return fromPath() || missing('the input version is "path", and PATH has no mayfly');
  if (version === 'source') return fromSource(folder);
  if (version !== '') return fromRelease(version, pinned, folder);
  if (pinned.latest && supported()) return fromRelease(pinned.latest, pinned, folder);
  return fromPath() || fromSource(folder);
}

function missing(why) {
  throw new Error(`${why}. Install mayfly in an earlier step, or set the input version to a release or to "source"`);
}

function fromPath() {
  for (const dir of (process.env.PATH || '').split(path.delimiter)) {
    const file = path.resolve(dir, 'mayfly');
    try {
      fs.accessSync(file, fs.constants.X_OK);
      if (dir !== '' && fs.statSync(file).isFile()) return { file, from: `PATH: ${file}`, inPath: true };
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
    missing('no release is pinned in this version of the action for this machine, PATH has no mayfly, and there is no Go to build it with (actions/setup-go)');
  }
  if (built.status !== 0) throw new Error(`go build of the action's own checkout: ${runner.plain(built.stderr || built.error)}`);
  return { file, from: 'the action\'s own source' };
}

// checkSystem refuses a system for which there is no mayfly.
function checkSystem() {
  if (!OS.includes(process.platform)) throw new Error(`mayfly has no program for ${process.platform}: build jobs on Linux or macOS`);
}

const supported = () => OS.includes(process.platform) && process.arch in ARCH;

async function fromRelease(version, pinned, folder) {
  if (!RELEASE.test(version)) {
    throw new Error(`input version: "${version}" is no release such as v1.2.3, nor "path" nor "source"`);
  }
  if (!supported()) throw new Error(`mayfly has no program for ${process.platform}/${process.arch}: build jobs on Linux or macOS, x64 or arm64`);
  const name = asset(version, process.platform, ARCH[process.arch]);
  const want = (pinned.releases[version] || {})[name];
  if (!want) throw new Error(`this version of the action pins no checksum for ${name}: use the action's tag ${version}, or leave the input version out`);
  const cached = cachePath(version);
  const kept = readCached(cached, name, want);
  const bytes = kept || await fetched(`${pinned.base}/${version}/${name}`, name, want);
  if (!kept) keep(cached, bytes);
  // Run this job's own copy of the hashed bytes.
  const file = path.join(folder, 'mayfly');
  fs.writeFileSync(file, bytes, { mode: 0o700, flag: 'wx' });
  return { file, from: `release ${version}${kept ? ', from the tool cache' : ''}, SHA-256 ${want}` };
}

const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

async function fetched(url, name, want) {
  const bytes = await download(url);
  const got = sha256(bytes);
  if (got !== want) throw new Error(`${name} has SHA-256 ${got}, and ${want} is pinned in this action: it was not run. Somebody may have replaced the release`);
  return bytes;
}

// cachePath returns the path that actions/tool-cache would use, or '' if the runner has
// no such folder.
function cachePath(version) {
  const base = process.env.RUNNER_TOOL_CACHE;
  return base ? path.join(base, 'mayfly', version.slice(1), process.arch, 'mayfly') : '';
}

// readCached returns the cached bytes if their hash is the pinned one: on a self-hosted
// runner, any job may have written the file.
function readCached(file, name, want) {
  try {
    if (file === '' || fs.statSync(file).size > MAX_BYTES) return null;
    const bytes = fs.readFileSync(file);
    if (sha256(bytes) === want) return bytes;
    runner.warning(`${file} is not the pinned ${name}: it is not used, and replaced`);
  } catch {
    // not cached
  }
  return null;
}

// keep stores the program for later jobs. A failure does not affect this job.
function keep(file, bytes) {
  if (file === '') return;
  const partial = `${file}.${process.pid}`;
  try {
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(partial, bytes, { mode: 0o755, flag: 'wx' });
    fs.renameSync(partial, file);
    fs.writeFileSync(`${path.dirname(file)}.complete`, '');
  } catch (err) {
    runner.info(`the tool cache was not written: ${err.message}`);
    try { fs.rmSync(partial, { force: true }); } catch { /* nor can it be tidied */ }
  }
}

module.exports = { checkSystem, find, ASSETS, MAX_BYTES, RELEASE };
