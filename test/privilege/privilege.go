// SPDX-License-Identifier: Apache-2.0

package privilege

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Audit is a policy file's text by which the API server writes down everything
// that Requests reads.
const Audit = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// Right is one verb on one resource.
type Right struct {
	// Namespace is empty for a right in the whole cluster.
	Namespace string
	Group     string
	// Resource is a plural, perhaps with a subresource: services/status. A path
	// such as /metrics is one too.
	Resource string
	// Name is empty where the right is for all objects.
	Name string
	Verb string
}

func (r Right) String() string {
	s := r.Verb + " " + r.Resource
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Name != "" {
		s += " " + r.Name
	}
	if r.Namespace != "" {
		s += " in " + r.Namespace
	}
	return s
}

// Finalizers tells whether the right is one to block the deletion of owners,
// which no request shows.
func (r Right) Finalizers() bool { return strings.HasSuffix(r.Resource, "/finalizers") }

// Request is one that the API server answered.
type Request struct {
	Right
	// Code is the answer's.
	Code int
	URI  string
	At   time.Time
}

// Read returns the objects of every manifest in a directory but
// kustomization.yaml: of those kinds that bear on rights, and ServiceAccounts.
func Read(dir string) ([]client.Object, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	scheme := clientgoscheme.Scheme
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []client.Object
	for _, path := range paths {
		if filepath.Base(path) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			if len(bytes.TrimSpace(document)) == 0 {
				continue
			}
			object, _, err := decoder.Decode(document, nil, nil)
			if runtime.IsNotRegisteredError(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			out = append(out, object.(client.Object))
		}
	}
	return out, nil
}

// Install creates what Read has found, with bindings last.
func Install(ctx context.Context, c client.Client, objects []client.Object) error {
	late := func(o client.Object) int {
		switch o.(type) {
		case *rbacv1.RoleBinding, *rbacv1.ClusterRoleBinding, *admissionv1.ValidatingAdmissionPolicyBinding:
			return 1
		}
		return 0
	}
	for _, object := range slices.SortedStableFunc(slices.Values(objects), func(a, b client.Object) int { return late(a) - late(b) }) {
		if err := c.Create(ctx, object.DeepCopyObject().(client.Object)); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
		}
	}
	return nil
}

// Grants returns every right that the objects' roles and bindings give a
// ServiceAccount, each once.
func Grants(objects []client.Object, account client.ObjectKey) []Right {
	rules := map[string][]rbacv1.PolicyRule{}
	for _, object := range objects {
		switch role := object.(type) {
		case *rbacv1.ClusterRole:
			rules["ClusterRole/"+role.Name] = role.Rules
		case *rbacv1.Role:
			rules["Role/"+role.Namespace+"/"+role.Name] = role.Rules
		}
	}
	given := map[Right]bool{}
	for _, object := range objects {
		switch binding := object.(type) {
		case *rbacv1.ClusterRoleBinding:
			if has(binding.Subjects, account) {
				expand(given, "", rules["ClusterRole/"+binding.RoleRef.Name])
			}
		case *rbacv1.RoleBinding:
			if !has(binding.Subjects, account) {
				continue
			}
			if binding.RoleRef.Kind == "ClusterRole" {
				expand(given, binding.Namespace, rules["ClusterRole/"+binding.RoleRef.Name])
			} else {
				expand(given, binding.Namespace, rules["Role/"+binding.Namespace+"/"+binding.RoleRef.Name])
			}
		}
	}
	return sorted(given)
}

func has(subjects []rbacv1.Subject, account client.ObjectKey) bool {
	return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
		return s.Kind == rbacv1.ServiceAccountKind && s.Name == account.Name && s.Namespace == account.Namespace
	})
}

func expand(given map[Right]bool, namespace string, rules []rbacv1.PolicyRule) {
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, verb := range rule.Verbs {
			for _, path := range rule.NonResourceURLs {
				given[Right{Resource: path, Verb: verb}] = true
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, name := range names {
						given[Right{Namespace: namespace, Group: group, Resource: resource, Name: name, Verb: verb}] = true
					}
				}
			}
		}
	}
}

func sorted(rights map[Right]bool) []Right {
	out := make([]Right, 0, len(rights))
	for r := range rights {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Right) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// event is what is read of audit.k8s.io/v1.
type event struct {
	Stage, Verb, RequestURI  string
	User                     struct{ Username string }
	ImpersonatedUser         *struct{ Username string }
	ObjectRef                *struct{ Resource, Subresource, Namespace, Name, APIGroup string }
	ResponseStatus           struct{ Code int }
	RequestReceivedTimestamp time.Time
}

// Requests returns what a ServiceAccount asked for, from an audit log.
func Requests(log string, account client.ObjectKey) ([]Request, error) {
	file, err := os.Open(log)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	defer file.Close()
	user := "system:serviceaccount:" + account.Namespace + ":" + account.Name
	var out []Request
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // the last line may be half written
		}
		who := e.User.Username
		if e.ImpersonatedUser != nil {
			who = e.ImpersonatedUser.Username
		}
		if who != user {
			continue
		}
		r := Request{Right: Right{Verb: e.Verb}, Code: e.ResponseStatus.Code, URI: e.RequestURI, At: e.RequestReceivedTimestamp}
		if ref := e.ObjectRef; ref != nil {
			r.Namespace, r.Group, r.Resource, r.Name = ref.Namespace, ref.APIGroup, ref.Resource, ref.Name
			if ref.Subresource != "" {
				r.Resource += "/" + ref.Subresource
			}
		} else {
			r.Resource, _, _ = strings.Cut(e.RequestURI, "?")
		}
		out = append(out, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return out, nil
}

// covers tells whether a right is enough for a request.
func (r Right) covers(q Right) bool {
	return r.Verb == q.Verb && r.Group == q.Group && r.Resource == q.Resource &&
		(r.Namespace == "" || r.Namespace == q.Namespace) && (r.Name == "" || r.Name == q.Name)
}

// Unneeded returns those of the rights without which every request would still
// have been allowed. Rights about finalizers are left out.
func Unneeded(rights []Right, requests []Request) []Right {
	needed := map[Right]bool{}
	for _, q := range requests {
		if q.Code == 403 {
			continue
		}
		var by []Right
		for _, r := range rights {
			if r.covers(q.Right) {
				by = append(by, r)
			}
		}
		if len(by) == 1 {
			needed[by[0]] = true
		}
	}
	var out []Right
	for _, r := range rights {
		if !needed[r] && !r.Finalizers() {
			out = append(out, r)
		}
	}
	return out
}

// Account is a ServiceAccount of config/.
func Account(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: "causeway-system", Name: name}
}

// Groups are those of every ServiceAccount of a namespace.
func Groups(account client.ObjectKey) []string {
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + account.Namespace, "system:authenticated"}
}

// Username is a ServiceAccount's name as a user.
func Username(account client.ObjectKey) string {
	return "system:serviceaccount:" + account.Namespace + ":" + account.Name
}
