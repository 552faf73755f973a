package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
)

// Names of the files that rotate sign writes and rotate install reads.
const (
	signedIntermediate = "intermediate.crt"
	signedRootCRL      = "root.crl"
)

// rotatedFolder is the folder of the config's CA, whose files must have the names
// that init gave them: a rotation writes those, and serve must read them.
func rotatedFolder(i *invocation, config string) (string, error) {
	cfg, err := i.config(config)
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(cfg.CA.Intermediate)
	root, crl, intermediate, key := ca.RotatedFiles(dir)
	files := [][3]string{{"root", cfg.CA.Root, root}, {"root_crl", cfg.CA.RootCRL, crl}, {"intermediate", cfg.CA.Intermediate, intermediate}}
	if filepath.IsAbs(cfg.CA.Key) { // as LoadConfig leaves a path, and nothing else
		files = append(files, [3]string{"key", cfg.CA.Key, key})
	}
	for _, f := range files {
		if filepath.Clean(f[1]) != f[2] {
			return "", fmt.Errorf("ca.%s is %s, and a rotation would write %s: give the files of the CA one folder and the names that init gave them", f[0], f[1], f[2])
		}
	}
	return dir, nil
}

// runRotateRequest makes the next intermediate's key and request, on the
// issuer's side.
func runRotateRequest(ctx context.Context, i *invocation) error {
	fs := i.flags()
	path := fs.String("config", "", "issuer.yaml; the key is made beside its ca.intermediate")
	key := fs.String("key", "", "a new key that exists already: a path, env:NAME or a KMS URI; default: one is made")
	if _, err := i.parse(fs, 0, 0); err != nil {
		return err
	}
	folder, err := rotatedFolder(i, *path)
	if err != nil {
		return err
	}
	req, err := ca.RequestRotation(ctx, folder, *key)
	if err != nil {
		return err
	}
	if req.Key != "" {
		fmt.Fprintf(i.Out, "made %s: it stays here\n", req.Key)
	}
	_, err = fmt.Fprintf(i.Out, "made %s: bring it to the root, and there run\n  mayfly-issuer rotate sign --root DIR --root-password-file FILE --request FILE --out DIR\n", req.Request)
	return err
}

// runRotateSign signs the next intermediate and the root's CRL, offline.
func runRotateSign(ctx context.Context, i *invocation) error {
	fs := i.flags()
	root := fs.String("root", "", "the offline folder that init wrote")
	key := fs.String("root-key", "", "the root's encrypted key; default: root.key in --root")
	password := fs.String("root-password-file", "", "file whose first line is the key's password; - reads the input")
	request := fs.String("request", "", "the request; left out: the root's CRL alone is signed")
	out := fs.String("out", "", "folder to write to, made when missing")
	url := fs.String("issuer-url", "", "with --engine-dns: how clients reach the issuer")
	var names, compromised list
	fs.Var(&names, "engine-dns", "replaces the DNS names that certificates may have; may be repeated")
	fs.Var(&compromised, "compromised", "an intermediate that nobody may trust any more: its certificate's path or its serial; may be repeated")
	if _, err := i.parse(fs, 0, 0); err != nil {
		return err
	}
	if *root == "" && *key != "" {
		*root = filepath.Dir(*key)
	}
	if *root == "" || *out == "" || *password == "" {
		return usagef("--root (or --root-key), --root-password-file and --out are needed")
	}
	o := ca.RotationOptions{RootDir: *root, RootKey: *key, EngineDNS: names, IssuerURL: *url, Compromised: compromised}
	var err error
	if o.Password, err = passwordFrom(i, *password); err != nil {
		return err
	}
	if *request != "" {
		if o.Request, err = readFile(*request, nil); err != nil {
			return err
		}
	}
	signed, err := ca.SignRotation(ctx, o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	if signed.Intermediate != nil {
		if err := os.WriteFile(filepath.Join(*out, signedIntermediate), signed.Intermediate, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(*out, signedRootCRL), signed.RootCRL, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.Out, "signed into %s: bring it to the issuer, and there run\n  mayfly-issuer rotate install --config issuer.yaml --signed DIR\n", *out)
	return err
}

func passwordFrom(i *invocation, path string) ([]byte, error) {
	if path != "-" {
		return firstLine(path)
	}
	data, err := readFile("-", i.In)
	if err != nil {
		return nil, err
	}
	return lineOf(data, "the input")
}

// runRotateInstall puts the new intermediate into use and takes a new CRL
// number, so that every engine sees the change.
func runRotateInstall(ctx context.Context, i *invocation) error {
	fs := i.flags()
	path := fs.String("config", "", "issuer.yaml")
	dir := fs.String("signed", "", "the folder that rotate sign wrote")
	key := fs.String("key", "", "the new key, where rotate request was given one")
	if _, err := i.parse(fs, 0, 0); err != nil {
		return err
	}
	if *dir == "" {
		return usagef("--signed is missing")
	}
	folder, err := rotatedFolder(i, *path)
	if err != nil {
		return err
	}
	signed, err := readSigned(*dir)
	if err != nil {
		return err
	}
	installed, err := ca.InstallRotation(ctx, folder, signed, *key)
	if err != nil {
		return err
	}
	fmt.Fprintf(i.Out, "installed; the intermediate that issues ends %s\n", installed.NotAfter.UTC().Format(time.RFC3339))
	if installed.PreviousCertificate != "" {
		fmt.Fprintf(i.Out, "the one before goes on signing CRLs: %s", installed.PreviousCertificate)
		if installed.PreviousKey != "" {
			fmt.Fprintf(i.Out, ", %s\n", installed.PreviousKey)
		} else {
			fmt.Fprint(i.Out, "\n  its key is not in the folder: name both under ca.previous\n")
		}
	}
	h, err := openHost(ctx, i, *path)
	if err != nil {
		return fmt.Errorf("the files are in place, but the authority does not open: %w\nsee that ca.key names the new key, and run rotate install again", err)
	}
	defer h.Close()
	crls, err := h.authority.Publish(ctx, "host/"+hostUser())
	if err != nil {
		return fmt.Errorf("%w\nthe files are in place: run rotate install again", err)
	}
	_, err = fmt.Fprintf(i.Out, "CRL number %d is published\nrestart mayfly-issuer serve: it stops in order, and issues with the new intermediate\n", crls.Number)
	return err
}

func readSigned(dir string) (ca.Rotation, error) {
	var r ca.Rotation
	var err error
	if r.Intermediate, err = readFile(filepath.Join(dir, signedIntermediate), nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r.RootCRL, err = readFile(filepath.Join(dir, signedRootCRL), nil)
	return r, err
}
