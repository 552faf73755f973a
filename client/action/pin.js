// Writes checksums.json from a folder of release binaries, so that this action runs no
// other bytes under that version. --check compares and writes nothing.
//
//	node client/action/pin.js v1.2.3 dist
//	node client/action/pin.js --check v1.2.3 dist
//
// README.md in this folder describes how to make a release.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { ASSETS, MAX_BYTES, RELEASE } = require('./binary');

// digests hashes the binaries of all platforms. It fails if one is missing.
function digests(version, folder) {
  const sums = {};
  for (const name of ASSETS(version)) {
    const bytes = fs.readFileSync(path.join(folder, name));
    if (bytes.length === 0 || bytes.length > MAX_BYTES) {
      throw new Error(`${name} has ${bytes.length} bytes: the action takes 1 to ${MAX_BYTES}`);
    }
    sums[name] = crypto.createHash('sha256').update(bytes).digest('hex');
  }
  return sums;
}

function differences(pinned, version, sums) {
  const have = pinned.releases[version] || {};
  const wrong = Object.keys(sums).filter((name) => have[name] !== sums[name])
    .map((name) => `${name} is ${sums[name]}, and ${have[name] || 'nothing'} is pinned`);
  if (pinned.latest !== version) wrong.push(`latest is "${pinned.latest}", not ${version}`);
  return wrong;
}

function main(args) {
  const check = args[0] === '--check';
  const [version, folder, file = path.join(__dirname, 'checksums.json')] = check ? args.slice(1) : args;
  if (!folder || !RELEASE.test(version)) throw new Error('usage: node pin.js [--check] vX.Y.Z FOLDER [CHECKSUMS.JSON]');
  const pinned = JSON.parse(fs.readFileSync(file, 'utf8'));
  const sums = digests(version, folder);
  if (check) {
    const wrong = differences(pinned, version, sums);
    if (wrong.length > 0) throw new Error(`${file} does not pin these binaries:\n${wrong.join('\n')}`);
    console.log(`${file} pins these ${Object.keys(sums).length} binaries of ${version}`);
    return;
  }
  pinned.latest = version;
  pinned.releases[version] = sums;
  fs.writeFileSync(`${file}.new`, `${JSON.stringify(pinned, null, 2)}\n`);
  fs.renameSync(`${file}.new`, file);
  console.log(`${file} pins ${Object.keys(sums).length} binaries of ${version}`);
}

try {
  main(process.argv.slice(2));
} catch (err) {
  console.error(`pin.js: ${err.message}`);
  process.exit(1);
}
